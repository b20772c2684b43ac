"""Defects made where too few were photographed: what is learnt from, how more are made, what they are worth."""
