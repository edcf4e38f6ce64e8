"""The third tab: pictures from models."""
