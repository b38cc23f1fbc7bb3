"""Whether a run needs torch, so that workers can import it before they fork."""

from dynenc import registry
from dynenc.batch.settings import ConversionSettings
from dynenc.interop.latent_formats import LATENT_FORMATS
from dynenc.native import encoder
from dynenc.networks.decoder_choice import choose_decoder


def needs_torch(settings: ConversionSettings) -> bool:
    """Whether a run needs torch, as far as is known before any file is read."""
    task, device = settings.task, settings.codec.device
    if task == "encode":
        model = registry.encoder_model(settings.codec.encoder)
        return settings.encode.needs_decoder or not encoder.runs_natively(model, device)
    if task == "export":
        return settings.output.suffix.lower() == LATENT_FORMATS["pt"]
    if task == "decode":  # most files are of SD 1.x, whose decoder is not always the embedded one
        return not choose_decoder(settings.codec.decoder, device=device).in_integers
    return task != "import"
