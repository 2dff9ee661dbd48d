"""The diffusion model under study."""
