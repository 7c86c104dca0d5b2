"""How the embedded model is trained; `scripts/train_tiny.py` is its command line.

`settings` says what is asked for, `images` cuts crops, `targets` holds what the CNN sees in them, `losses` compares, `trainer`
takes the steps, `checkpoint` keeps them.
"""
