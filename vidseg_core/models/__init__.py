"""The pre-trained diffusion models: everything that knows diffusers."""
