"""Models behind one protocol: the only place that knows diffusers or ComfyUI's models."""
