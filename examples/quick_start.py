"""Adapt the tiny CLIP to a folder of photos (one folder a class) and predict: python examples/quick_start.py [FOLDER]

Without a folder: drawn birds. Everything runs offline. On real photos use a real CLIP, see `load_openclip` below.
"""

import argparse
from pathlib import Path

import xrvlm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="one folder a class; default: drawn birds")
    parser.add_argument("--shots", type=int, default=4)
    parser.add_argument("--runs", default="runs")
    arguments = parser.parse_args()

    clip = xrvlm.load_tiny_clip()    # of real photos: xrvlm.load_openclip("ViT-B-16-quickgelu", "openai")
    dataset = xrvlm.image_folder(arguments.folder) if arguments.folder else xrvlm.load_world()
    options = xrvlm.RunOptions(runs=arguments.runs)

    zero_shot = xrvlm.zero_shot(clip, dataset, options=options)
    run = xrvlm.adapt(clip, dataset, xrvlm.XRVLMPlus, shots=arguments.shots, options=options)
    print(f"zero-shot {zero_shot.accuracy:.1%}, XR-VLM+ with {arguments.shots} shots {run.accuracy:.1%}: {run.folder}")

    photo = Path(dataset.source.root) / dataset.split.train[0].id
    for name, probability in run.classifier.predict(photo, topk=3):
        print(f"{probability:.1%} {name}")

    run.classifier.save("model.safetensors")
    again = xrvlm.load("model.safetensors", clip)
    assert again.predict(photo) == run.classifier.predict(photo)


if __name__ == "__main__":
    main()
