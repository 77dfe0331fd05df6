"""Figures of an edit: how near it stays, what it changed, and whether that is what was asked.

metric          what a metric is given and what it gives; `evaluate` asks several in turn
psnr, ssim      distance to the source and to the wished-for edit
flicker         change from frame to frame
clip_direction  does an edit lead from what one text says to what another says, to CLIP's eye? It needs texts and a
                model, so it is not in the table
"""

from . import flicker, psnr, ssim

METRICS = (  # what Evaluate Edit says, in this order: a new metric is a file like these and a line here
    *psnr.METRICS,
    *ssim.METRICS,
    *flicker.METRICS,
)
