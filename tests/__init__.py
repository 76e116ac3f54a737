"""The tests of lmkit."""
