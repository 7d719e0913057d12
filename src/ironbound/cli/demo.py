"""`ironbound demo`: the main job, from training to report, on handwritten digits that need no download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ironbound.cli import options as given
from ironbound.cli.session import Watch, exit_codes

if TYPE_CHECKING:
    from torch import nn

    from ironbound.certification import Certification
    from ironbound.data import Dataset
    from ironbound.report.picture import Shown
    from ironbound.training import Epoch

EPS = 0.1
CLIP = (0.0, 1.0)
METHODS = ("interval", "dual")


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the picture and the results.")] = Path("ironbound-demo"),
    quiet: given.Quiet = False,
    threads: given.Threads = None,
) -> None:
    """Train a small network on real digits, prove what can be proved, attack the rest, and draw it."""
    with exit_codes():
        watch = Watch(quiet)
    with exit_codes(watch.kept):
        import torch

        from ironbound.data import load
        from ironbound.report.table import print_table

        if threads is not None:
            torch.set_num_threads(threads)
        _folder(out)
        model, test = _train(out, quiet), load("digits", "test")
        result = _certify(model, test, out, watch)
        print_table(result, per_class=True)
        _keep(out, result)
        _picture(out, result, _shown(model, test, result))
        typer.echo(
            f"\nThe same again, on the weights that were just trained:\n  ironbound certify --arch digits "
            f"--weights {out / 'digits.pth'} --data digits --eps {EPS} --clip 0,1 --methods {','.join(METHODS)}"
        )


def _folder(out: Path) -> None:
    from ironbound.errors import InputError

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out} cannot be made: {error.strerror}; name another folder with --out.") from error


def _train(out: Path, quiet: bool) -> nn.Module:
    import torch

    from ironbound.data import load
    from ironbound.models import build
    from ironbound.training import digits_demo
    from ironbound.training import train as run
    from ironbound.training.artefact import save_weights

    data, recipe = load("digits", "train"), digits_demo()

    def say(text: str) -> None:
        if not quiet:
            typer.echo(text, err=True)

    def report(epoch: Epoch) -> None:
        if epoch.number % 10 == 0:
            say(f"  epoch {epoch.number}: ε {epoch.eps:.3g}, not proved by intervals {100 * epoch.error:.1f} %")

    say(f"training a small network on {len(data)} handwritten digits, {recipe.run.epochs} epochs …")
    torch.manual_seed(0)
    model = build("digits")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # steps this small only lose time to a second thread
        run(model, data.inputs, data.labels, recipe, progress=report)
    finally:
        torch.set_num_threads(threads)
    save_weights(model, out / "digits.pth")
    return model


def _certify(model: nn.Module, test: Dataset, out: Path, watch: Watch) -> Certification:
    from ironbound.certification import certify
    from ironbound.cli.run import Source, with_origin

    with watch:
        result = certify(model, test.inputs, test.labels, eps=EPS, clip=CLIP, methods=METHODS, shard=64, progress=watch)
    source = Source("digits", out / "digits.pth", None, "digits", None, "test", None, None)
    return with_origin(result, source, test, 0, len(test))


def _shown(model: nn.Module, test: Dataset, result: Certification) -> Shown:
    """Adds the margins of falsified examples, which the cascade skips, and the answers to what fools the network."""
    import torch

    from ironbound.bounding import margins
    from ironbound.regions import LinfBall
    from ironbound.report.picture import Shown

    bounds = result.margins.clone()
    falsified = torch.tensor(sorted(result.adversarial), dtype=torch.int64)
    with torch.no_grad():
        if len(falsified):
            region = LinfBall(test.inputs[falsified], EPS, CLIP)
            bounds[falsified] = margins(model, region, test.labels[falsified], method=METHODS[-1]).double()
        answers = {at: int(model(point[None]).argmax()) for at, point in result.adversarial.items()}
    return Shown(test.inputs, bounds, answers)


def _keep(out: Path, result: Certification) -> None:
    from ironbound.cli.run import save_adversarial
    from ironbound.errors import InputError

    path = out / "results.json"
    try:
        path.write_text(result.to_json(per_class=True), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error.strerror}; name another folder with --out.") from error
    if result.adversarial:
        save_adversarial(out / "adversarial.npz", result)


def _picture(out: Path, result: Certification, shown: Shown) -> None:
    from ironbound.report.picture import draw, text_picture

    path = out / "ironbound-demo.png"
    if draw(result, shown, path):
        typer.echo(f"\npicture: {path}; numbers: {out / 'results.json'}")
        return
    typer.echo("\n" + text_picture(result, shown))
    typer.echo(f"\nnumbers: {out / 'results.json'} (install the extra 'figures' for a picture)")
