"""Budget arithmetic and configuration never load torch; names are loaded when asked for."""

import subprocess
import sys

import pytest

import model
import trainer


def run_python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_shapes_and_configuration_do_not_load_torch() -> None:
    code = (
        "import sys\n"
        "import model, trainer\n"
        "import model.config, model.flops, model.cpu.block_sizes, trainer.config\n"
        "import trainer.optim.schedules, trainer.optim as o; o.optimizer_kinds()\n"
        "print('torch' in sys.modules)"
    )
    assert run_python(code).strip() == "False"


def test_layers_and_loss_do_not_load_the_compiler() -> None:
    # torch._dynamo takes as long to import as torch itself; a worker should not pay for it.
    code = (
        "import sys\n"
        "import model.generation.decoding, model.loss, trainer.course, trainer.evaluation\n"
        "import trainer.optim.algorithms.muon\n"
        "print('torch._dynamo' in sys.modules)"
    )
    assert run_python(code).strip() == "False"


@pytest.mark.parametrize("package", [model, trainer])
def test_every_exported_name_is_there(package: object) -> None:
    for name in package.__all__:  # type: ignore[attr-defined]
        assert callable(getattr(package, name))
        assert name in dir(package)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'model' has no attribute 'Decoder'"):
        _ = model.Decoder
    with pytest.raises(ImportError, match="validate"):
        from trainer import validate  # noqa: F401
