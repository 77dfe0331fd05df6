"""One file per technique, pure torch, usable without ComfyUI.

str_match     STR-Match: optimise the latent so that its spatio-temporal relevance matches the source's
latent_blend  keep the source outside a mask
evaluate      figures of an edit: PSNR to source and reference, background, flicker
"""
