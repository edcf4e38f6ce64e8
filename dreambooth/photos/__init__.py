"""The subject's photos: found, checked, cropped, captioned, and advised on."""
