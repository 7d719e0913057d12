"""A classifier behind HTTP that says of each answer whether the input can be adversarial."""

from __future__ import annotations

import os

import torch
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

import ironbound as ib


class Inputs(BaseModel):
    """A batch: nested lists [n, 1, 8, 8] of grey levels in [0, 1]."""

    inputs: list


class Answer(BaseModel):
    """What is said of one input; the margin is null where nothing was proved."""

    prediction: int
    answer: str
    reason: str
    margin: float | None


def build() -> ib.Guard:
    """The guard of the digits network, from weights that `ironbound demo` wrote."""
    model = ib.models.build("digits")
    ib.models.load_weights(model, os.environ.get("GUARD_WEIGHTS", "ironbound-demo/digits.pth"))
    eps, latency = float(os.environ.get("GUARD_EPS", "0.1")), float(os.environ.get("GUARD_LATENCY", "0.5"))
    return ib.Guard(model.eval(), eps, clip=(0, 1), latency=latency, shape=(1, 8, 8))


guard = build()
app = FastAPI(title="Ironbound guard")


@app.post("/predict")
def predict(body: Inputs) -> list[Answer]:
    """Predicts each input, and says which cannot be adversarial."""
    try:
        x = torch.tensor(body.inputs, dtype=torch.float32)
        found = guard(x)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, wrong shapes: refused, never passed
        raise HTTPException(422, str(error)) from error
    columns = found.predictions.tolist(), found.answers, found.reasons, found.margins.tolist()
    return [
        Answer(prediction=prediction, answer=answer, reason=reason, margin=margin if margin > float("-inf") else None)
        for prediction, answer, reason, margin in zip(*columns, strict=True)
    ]


@app.get("/promise")
def promise() -> dict[str, object]:
    """What "cannot be adversarial" means here."""
    return {"eps": guard.eps, "norm": guard.norm, "clip": guard.clip, "latency": guard.latency}
