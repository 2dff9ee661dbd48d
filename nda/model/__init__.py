"""The diffusion model under study."""

from nda.errors import needs

needs("diffusers", "model")
