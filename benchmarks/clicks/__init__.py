"""The promptable side of the stand-in base: how it is trained, and what clicks are worth."""
