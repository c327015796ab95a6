.PHONY: docs

# The documentation, in docs/_build/html. It needs: pip install -e ".[docs]"
docs:
	python -m sphinx -W --keep-going --quiet docs docs/_build/html
