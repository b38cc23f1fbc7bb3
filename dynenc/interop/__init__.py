"""Other programs: latent files of trainers, diffusers pipelines and torch data sets."""
