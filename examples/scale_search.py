"""Find the scale at which steering costs a given loss, and see the curve that it was found on.

    python examples/scale_search.py [--model demo] [--layer 4] [--target 0.3] [--texts 8]

Makes a direction from pairs of texts, doubles its scale until the mean loss of the texts has risen by the target (in
nats a token), divides the bracket in log scale, and reports the loss on the texts that the scale was not chosen on.
"""

from __future__ import annotations

import argparse

from lens_tui import LOSS_TEXTS, Add, LensModel, contrast, find_scale

HAPPY = ["What a happy day we had.", "She smiled because the news was good.", "The children laughed with joy."]
SAD = ["What a sad day we had.", "She wept because the news was bad.", "The children cried with pain."]


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--layer", type=int, default=4)
    parser.add_argument("--target", type=float, default=0.3, help="rise of the mean loss, nats a token")
    parser.add_argument("--texts", type=int, default=8, help="how many of the library's 64 texts to use")
    args = parser.parse_args()

    lens = LensModel(args.model)
    vector = contrast(lens, "happy", HAPPY, SAD, layers=args.layer, over="all").best
    steering = Add(id="happy", layer=vector.layer, vector=vector, scale=1.0)
    found = find_scale(lens, steering, target=args.target, texts=LOSS_TEXTS[: args.texts])

    largest = max(*found.curve.values, args.target)
    for scale, value in zip(found.curve.scales, found.curve.values, strict=True):
        bar = "█" * round(40 * max(value, 0.0) / largest)
        print(f"{scale:9.2f} {value:+8.3f} {bar}")
    if not found.reached:
        print(f"No scale that was tried gives {args.target:+.2f} nat.")
        return
    low, high = found.bracket
    print(f"scale {found.scale:.2f} costs {found.value:+.3f} nat (between {low:.2f} and {high:.2f})")
    if found.held_out is not None:
        print(f"on texts it was not chosen on: {found.held_out:+.3f} nat")
    for start, stop in found.curve.reversals:
        print(f"the curve turns back between {start:.2f} and {stop:.2f}")


if __name__ == "__main__":
    main()
