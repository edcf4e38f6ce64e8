"""DreamBooth Studio: teach a text-to-image model one subject from a few photos (Ruiz et al., CVPR 2023)."""
