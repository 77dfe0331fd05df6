"""ComfyUI's own MODEL, CLIP and VAE behind the engine's ports. Nothing on the shared MODEL stays changed."""
