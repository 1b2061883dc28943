"""Read a text through a sparse autoencoder, then steer with what it finds.

    python examples/sae_analysis.py [--model demo] [--sae PATH] [--text "..."]

Prints how well the SAE fits the text, the top features of each token, what the most telling feature promotes and
suppresses, and a continuation with that feature added and with it clamped through the SAE's own encoder.
"""

from __future__ import annotations

import argparse

import mlx.core as mx
import numpy as np

from lens_tui import Add, Arm, ClampFeature, LensModel, demo, load_sae

TEXT = "Add the flour, the butter and two eggs, and bake the cake in a hot oven."
PROMPT = "The old man opened the door and"


def main() -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--sae", default=str(demo.sae_paths()[demo.default_sae()]))
    parser.add_argument("--text", default=TEXT)
    parser.add_argument("--max-tokens", type=int, default=60)
    args = parser.parse_args()

    lens = LensModel(args.model)
    sae = load_sae(args.sae)
    layer = sae.info.layer
    ids = lens.tokens.encode(args.text)
    with lens.capture([layer], site=sae.info.site) as captured:
        lens.forward(list(ids))
    residual = captured[layer][0, 1:]  # the first token is BOS, which this SAE was not trained on
    whole = sae.reconstruct(residual)
    print(f"{sae.info.name}: L0 {float(mx.mean(whole.l0.astype(mx.float32)).item()):.1f}, FVU {whole.fvu:.3f}")

    top_ids, top_values = (np.array(part) for part in sae.top_k(residual, 3))
    for token, features, values in zip(ids[1:], top_ids, top_values, strict=True):
        found = "  ".join(f"{f:>5} {v:6.2f}" for f, v in zip(features, values, strict=True) if f >= 0)
        print(f"  {lens.tokens.display(token)!r:<12} {found}")

    # The feature that is active on most tokens of this text, less what it does on a text about something else.
    other = lens.residuals("The king rode through the forest with his men until the night came.", layer)
    here = np.array(sae.encode(residual)).mean(axis=0)
    there = np.array(sae.encode(other[1:])).mean(axis=0)
    feature = int(np.argmax(here - there))
    promoted, suppressed = lens.promoted(np.array(sae.directions([feature])[0]), 8)
    print(f"\nfeature {feature}: mean activation {here[feature]:.2f} here, {there[feature]:.2f} elsewhere")
    print("  promotes  ", " ".join(weight.text for weight in promoted))
    print("  suppresses", " ".join(weight.text for weight in suppressed))

    vector = sae.vector(feature)
    lens.attach_sae("sae", sae)
    scale = 0.8 * float(np.median(np.linalg.norm(np.array(residual.astype(mx.float32)), axis=-1)))
    arms = [
        Arm("added", (Add(id="add", layer=layer, vector=vector, scale=scale),)),
        Arm("clamped", (ClampFeature(id="clamp", layer=layer, sae="sae", feature=feature, value=scale),)),
    ]
    run = lens.compare(PROMPT, arms, max_tokens=args.max_tokens, temp=0.7, seed=7)
    for _ in run:
        pass
    for name, text in zip(run.arms, run.texts, strict=True):
        print(f"\n── {name}\n{PROMPT}{text}")


if __name__ == "__main__":
    main()
