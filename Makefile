.PHONY: docs tour

# The documentation, in docs/_build/html. It needs: pip install -e ".[docs]"
docs:
	python -m sphinx -W --keep-going --quiet docs docs/_build/html

# The notebook, executed with its outputs written into it. It needs: pip install -e ".[test,docs]"
tour:
	python -m tests.tour
