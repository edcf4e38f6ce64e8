"""DreamBooth Studio: teach a text-to-image model one subject from a few photos (Ruiz et al., CVPR 2023)."""

__version__ = "0.2.0"
