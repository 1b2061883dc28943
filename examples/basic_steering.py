"""Steer a model, measure what it costs, and watch both texts.

    python examples/basic_steering.py [--model demo] [--layer 4] [--scale 22]

Takes a direction from two sets of texts (mean difference), adds it to the residual stream, and prints the
change of loss, the delivered dose, and baseline and steered text side by side with a random control.
"""

from __future__ import annotations

import argparse

from lens_tui import Add, Arm, LensModel, mean_difference, random_unit, residual_norm

COOKING = [
    "Stir the soup, add salt and pepper, and let it simmer until the onions are soft.",
    "Beat two eggs with a cupful of sugar, then add the flour and bake in a hot oven.",
    "Fry the fish in butter and serve it hot with parsley.",
]
OTHER = [
    "The king rode through the forest with his men until the night came.",
    "She opened the letter, read it twice, and put it away without a word.",
    "The children ran down to the river and threw stones into the water.",
]
TEXT = "The old man opened the door and found a letter on the table."
PROMPT = "The old man opened the door and"


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--layer", type=int, default=4)
    parser.add_argument("--scale", type=float, default=0.8, help="in multiples of the median residual norm")
    parser.add_argument("--max-tokens", type=int, default=60)
    args = parser.parse_args()

    lens = LensModel(args.model)
    cooking = mean_difference(lens, "cooking", COOKING, OTHER, args.layer)
    control = random_unit(lens, "random", args.layer, seed=0)
    scale = args.scale * residual_norm(lens, args.layer)
    print(f"{lens.info.name}: {lens.n_layers} layers, d_model {lens.d_model}; scale {scale:.1f} at layer {args.layer}")

    plain = lens.loss(TEXT)
    for vector in (cooking, control):
        with lens.steer(args.layer, vector, scale):
            steered = lens.loss(TEXT)
        print(f"loss of a plain sentence under {vector.name}: {plain:.3f} -> {steered:.3f} nats a token")

    arms = [
        Arm(vector.name, (Add(id=vector.name, layer=args.layer, vector=vector, scale=scale),))
        for vector in (cooking, control)
    ]
    run = lens.compare(PROMPT, arms, max_tokens=args.max_tokens, temp=0.7, seed=7)
    for _ in run:
        pass
    for index, (name, text) in enumerate(zip(run.arms, run.texts, strict=True)):
        doses = run.doses(index)
        moved = f", moved {doses[0].relative:.2f} |h|" if doses else ""
        print(f"\n── {name}{moved}\n{PROMPT}{text}")


if __name__ == "__main__":
    main()
