import subprocess
import sys

SCRIPT = """
import sys, torch
from openmed.models.factory import ModelFactory
model = ModelFactory.create("resnet50", timm_name="test_resnet", image_size_px=32)
model.predict(torch.zeros(1, 32, 32, dtype=torch.uint8))
assert not [name for name in sys.modules if name.startswith("torch._dynamo")], "the compiler was loaded"
# Training loads it, and it is the real one.
torch.optim.AdamW(model.parameters())
assert sys.modules["torch._dynamo"].__file__ and torch._dynamo.config is not None
assert torch.compile(torch.nn.Identity(), backend="eager")(torch.ones(2)).sum() == 2
"""


def test_a_prediction_does_without_the_compiler_and_what_needs_it_gets_it():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
