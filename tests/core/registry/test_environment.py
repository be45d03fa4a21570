import json
import platform
import subprocess
import sys
from importlib import metadata

from modelwright.core.registry.record import environment


def test_the_environment_names_python_the_platform_and_every_package():
    """By normalised names, as strings that are JSON."""
    found = environment()
    assert found["python"].startswith(platform.python_version())
    assert found["platform"] == platform.platform()
    assert found["package.attrs"] == metadata.version("attrs")
    assert found["package.typing-extensions"] == metadata.version("typing_extensions")
    assert json.loads(json.dumps(found)) == found


def test_the_environment_says_nothing_of_who_and_where():
    """A registered model may be given away: no host, no user, no paths."""
    text = json.dumps(environment())
    assert platform.node() not in text
    assert sys.prefix not in text


def test_recording_the_environment_imports_no_torch():
    """Versions come from the packages' metadata."""
    program = (
        "import sys; from modelwright.core.registry.record import environment; environment(); "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
