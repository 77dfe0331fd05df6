"""Figures of an edit: how near it stays, what it changed, and whether that is what was asked.

evaluate        distances to the source and to a reference, flicker
clip_direction  does an edit lead from what one text says to what another says, to CLIP's eye?
"""
