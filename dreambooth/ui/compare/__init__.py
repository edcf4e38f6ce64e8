"""The fourth tab: what training did."""
