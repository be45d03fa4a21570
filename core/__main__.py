"""`python -m modelwright.core` is the `modelwright` command."""

from modelwright.core.cli import main

main()
