"""The file formats of latents that other programs read and write, for options; imports no torch."""

LATENT_FORMATS = {  # by the name that --to takes: suffix
    "safetensors": ".safetensors",
    "npz": ".npz",
    "comfy": ".latent",
    "pt": ".pt",
    "musubi": ".safetensors",
    "ai-toolkit": ".safetensors",
}
LATENT_SUFFIXES = tuple(dict.fromkeys(LATENT_FORMATS.values()))
