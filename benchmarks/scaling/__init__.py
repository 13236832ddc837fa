"""A model of a step's time, checked against measurements and drawn out to more workers than a machine has.

    python -m benchmarks constants scaling --json benchmarks/scaling/measured.json
    python -m benchmarks.scaling --constants benchmarks/scaling/measured.json --page docs/scaling.md --images docs/images

`docs/scaling.md` says what the model is and what it leaves out.
"""
