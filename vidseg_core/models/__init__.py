"""The pre-trained diffusion models: all that knows diffusers."""
