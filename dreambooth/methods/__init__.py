"""What differs between ways of fine-tuning: a method attaches to a pipeline, and saves and loads what it trained."""

from __future__ import annotations

from dreambooth.methods.method import Method


def get_method(name: str) -> Method:
    """The method of that name; `Config` has checked the name."""
    return {method.name: method for method in methods()}[name]


def methods() -> tuple[Method, ...]:
    """All methods, the paper's first."""
    from dreambooth.methods import custom_diffusion, full, lora, textual_inversion

    return (full.METHOD, lora.METHOD, textual_inversion.METHOD, custom_diffusion.METHOD)
