"""A stage of another package: does a triplet's middle slice show a vertebra?"""
