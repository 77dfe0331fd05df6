"""ComfyUI's door: it imports this file by path, and nothing else happens until it asks for the nodes."""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    from .nodes import WeftExtension

    return WeftExtension()
