"""How results look. Draws what it is given and computes nothing; matplotlib loads at first use."""
