def test_model(run, run_json):
    """The live checkpoint and the limits are shown as JSON and as a table."""
    assert run_json("model", "show")[0]["entity_types"] == ["LOC", "PER"]
    assert "LOC, PER" in run("model", "show", terminal=True).stdout


def test_health(run, run_json, server):
    """The exit code of health says whether the server is serving."""
    assert run_json("health") == [{"service": "", "health": "serving"}]
    server.serving = False
    assert run("health").exit_code == 1
