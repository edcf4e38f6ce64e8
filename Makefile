# The few commands that everyone needs; each is what the README says.
.PHONY: app test lint format

app:
	python app.py

test:
	python -m pytest

lint:
	ruff check . && ruff format --check . && mypy

format:
	ruff check --fix . && ruff format .
