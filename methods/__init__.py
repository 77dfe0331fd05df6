"""One file per technique, pure torch, usable without ComfyUI.

str_match     STR-Match: optimise the latent so that its spatio-temporal relevance matches the source's
str_view      that relevance, painted over the source
coupled_flow  FlowEdit and FlowAlign: an edit without inversion, a Solver
latent_blend  keep the source outside a mask
correspondence            COVE: what is where in the other frames, by diffusion features
correspondence_attention  COVE: every token attends to its own matches
spatio_temporal           every frame attends to all frames
injection                 the source's residual features, queries and keys in the first steps
gather_swap   VIA: all frames attend to the keys and values of a few
candidates    VIA: edits of one frame, to choose from
adaptation    VIA: a model learns from one good edit of one frame
chunks        VIA: a long clip cut for several workers, and put together again
stem          STEM inversion: self-attention on a few hundred bases that all frames share
token_flow    TokenFlow: keyframes edited together, their tokens carried along the source's motion
fate_zero     FateZero: the source's attention, but where the edited thing is
words         words of two prompts and their tokens, for methods that fuse cross-attention
"""
