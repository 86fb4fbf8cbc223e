import subprocess
import sys

from dlm_kernels import dispatch, info


def test_command_prints_versions_backends_and_threads():
    result = subprocess.run([sys.executable, "-m", "dlm_kernels.info"], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for word in ("torch", "numpy", "numba", "threads", "OpenMP", *dispatch.BACKENDS):
        assert word in result.stdout
    for name in dispatch.BACKENDS:
        assert dispatch.backend_status(name).reason in result.stdout


def test_absent_backends_come_with_their_reason(monkeypatch):
    monkeypatch.setattr(
        dispatch, "backend_status", lambda name: dispatch.BackendStatus(name == "reference", f"{name} went missing")
    )
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "reference")
    text = info.report()
    assert "absent: cpu went missing" in text
    assert "absent: numba went missing" in text
    assert "reference  available" in text
    assert "DLM_KERNELS_BACKEND = reference" in text


def test_instruction_set_is_shown_when_the_cpu_kernels_are_there():
    if dispatch.backend_status("cpu").available:
        from dlm_kernels import cpu

        assert f"instruction set {cpu.isa()}" in info.report()
