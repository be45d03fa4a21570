"""The base of a run that was submitted."""


def test_a_training_asks_nothing_of_the_registry(modelwright, run_file, home, tmp_path):
    """Its base was pinned when the run was submitted: the database may be away."""
    first = modelwright("run", run_file("train.max_steps = 1"))
    assert first.returncode == 0, first.stderr
    path = run_file("name = 'next'\ntrain.max_steps = 1\nmodel.base = 'tiny'")
    printed = modelwright("submit", path, "--print", "--json")
    assert printed.returncode == 0, printed.stderr
    prepared = modelwright("prepare", path)
    assert prepared.returncode == 0, prepared.stderr
    (home / "registry.db").write_text("no database at all")
    trained = modelwright("train", path)
    assert trained.returncode == 0, trained.stderr
    refused = modelwright("register", path)
    assert refused.returncode == 1
    assert "is not an SQLite database" in refused.stderr
