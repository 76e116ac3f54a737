"""`python -m lmkit` is the command `lmkit`."""

import sys

from .cli import main

sys.exit(main())
