"""`python -m preprocess`: the same as the console script."""

from preprocess.cli import main

if __name__ == "__main__":
    main()
