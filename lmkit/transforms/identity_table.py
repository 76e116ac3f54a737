"""English words and first names that are told apart by gender alone."""

from __future__ import annotations

from .stop_words import STOP_WORDS

__all__ = ["AFTER_OBJECT", "GENDERED", "NAMES", "ONE_WAY"]

_WORDS = """
he she, himself herself, man woman, men women, boy girl, boys girls, father mother, fathers mothers,
dad mom, dads moms, daddy mommy, papa mama, son daughter, sons daughters, brother sister, brothers
sisters, husband wife, husbands wives, uncle aunt, uncles aunts, nephew niece, nephews nieces,
grandfather grandmother, grandfathers grandmothers, grandpa grandma, grandson granddaughter,
grandsons granddaughters, stepfather stepmother, stepson stepdaughter, stepbrother stepsister,
godfather godmother, boyfriend girlfriend, boyfriends girlfriends, groom bride, grooms brides,
widower widow, widowers widows, bachelor bachelorette, fiance fiancee, male female, males females,
masculine feminine, masculinity femininity, manhood womanhood, boyhood girlhood, fatherhood
motherhood, brotherhood sisterhood, fatherly motherly, brotherly sisterly, paternal maternal,
paternity maternity, patriarch matriarch, patriarchy matriarchy, gentleman lady, gentlemen ladies,
guy gal, guys gals, lad lass, lads lasses, sir madam, mr ms, king queen, kings queens, prince
princess, princes princesses, duke duchess, baron baroness, emperor empress, god
goddess, gods goddesses, hero heroine, heroes heroines, actor actress, actors actresses, waiter
waitress, waiters waitresses, steward stewardess, heir heiress,
sorcerer sorceress, wizard witch, wizards witches, monk nun, monks nuns, landlord landlady,
landlords landladies, policeman policewoman, policemen policewomen, businessman businesswoman,
businessmen businesswomen, chairman chairwoman, chairmen chairwomen, spokesman spokeswoman,
spokesmen spokeswomen, congressman congresswoman, congressmen congresswomen, salesman saleswoman,
salesmen saleswomen, fireman firewoman, cameraman camerawoman, craftsman craftswoman, sportsman
sportswoman, schoolboy schoolgirl, schoolboys schoolgirls, cowboy cowgirl, cowboys cowgirls,
fisherman fisherwoman, barman barmaid, headmaster headmistress, masseur masseuse, stallion mare,
bull cow, rooster hen
"""
#: In both directions, in small letters. Without those that are verbs as well: to host, to count.
GENDERED = [(pair.split()[0], pair.split()[1]) for pair in _WORDS.split(",")]
#: In one direction: their way back is another word.
ONE_WAY = {"mrs": "mr", "mum": "dad", "mums": "dads", "mummy": "daddy"}

_NAMES = """
James Mary, John Patricia, Robert Jennifer, Michael Linda, David Elizabeth, William Barbara, Richard
Susan, Joseph Jessica, Thomas Sarah, Charles Karen, Christopher Lisa, Daniel Nancy, Matthew Betty,
Anthony Margaret, Steven Sandra, Paul Ashley, Andrew Kimberly, Joshua Emily, Kenneth Donna, Kevin
Michelle, Brian Carol, George Amanda, Timothy Melissa, Ronald Deborah, Edward Stephanie, Jason
Rebecca, Jeffrey Sharon, Ryan Laura, Jacob Cynthia, Gary Kathleen, Nicholas Amy, Eric Angela,
Jonathan Shirley, Stephen Anna, Larry Brenda, Justin Pamela, Scott Emma, Brandon Nicole, Benjamin
Helen, Samuel Samantha, Gregory Katherine, Alexander Christine, Patrick Debra, Raymond Rachel, Jack
Carolyn, Dennis Janet, Jerry Catherine, Tyler Maria, Aaron Heather, Jose Diane, Adam Ruth, Nathan
Julie, Henry Olivia, Douglas Victoria, Zachary Kelly, Peter Lauren, Kyle Christina, Ethan Joan,
Walter Evelyn, Noah Judith, Jeremy Megan, Christian Andrea, Keith Cheryl, Roger Hannah, Terry
Jacqueline, Gerald Martha, Harold Gloria, Sean Teresa, Austin Ann, Carl Sara, Arthur Madison,
Lawrence Frances, Dylan Kathryn, Jesse Janice, Bryan Jean, Billy Abigail, Bruce Alice, Gabriel
Julia, Joe Judy, Logan Sophia, Albert Denise, Willie Doris, Alan Marilyn, Juan Danielle, Wayne
Beverly, Elijah Isabella, Randy Theresa, Roy Diana, Vincent Natalie, Ralph Brittany, Eugene
Charlotte, Russell Marie, Louis Kayla, Philip Alexis, Tom Jane, Mike Susie, Bob Kate, Jim Sally,
Steve Wendy, Dave Sue, Tim Lucy, Simon Claire, Martin Monica, Oliver Amelia, Harry Sophie, Oscar
Ella, Leo Mia, Luke Chloe, Max Zoe, Felix Clara, Hugo Eva, Ivan Olga, Carlos Carmen, Pedro Lucia,
Ahmed Fatima, Mohammed Aisha, Omar Layla, Ali Zainab, Raj Priya, Ravi Anita
"""
#: First names in order of their frequency in English-speaking countries, in both directions.
NAMES = [(pair.split()[0], pair.split()[1]) for pair in _NAMES.split(",")]

_MAY_FOLLOW = """
own other same few many most more least less only very ever even once such first all almost
"""
_NO_NOUNS = """
yesterday today tomorrow tonight later soon back away alone home well anyway instead together please
goodbye alive dead
"""
#: Behind one of these `her` is no possessive but an object, and `his` stands alone.
AFTER_OBJECT = (STOP_WORDS - frozenset(_MAY_FOLLOW.split())) | frozenset(_NO_NOUNS.split())
