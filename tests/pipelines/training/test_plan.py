"""What `--print_plan` says."""


def test_the_plan_of_a_run_is_printed_and_nothing_is_done(run, tmp_path):
    outcome = run("fit", "--config", "configs/experiment/ensemble__mbpo.yaml", "--print_plan")
    assert outcome.code == 0
    assert list(tmp_path.iterdir()) == []
    lines = [line.strip() for line in outcome.out.splitlines()]
    words = [line.split()[0] for line in lines]
    order = [
        *("once,", "Collect.on_fit_start", "Refit.on_train_start", "Mbpo.on_train_batch_start"),
        *("Agent.training_step", "Guard.on_before_backward", "Agent.optimizer_step"),
        *("Evaluate.on_train_batch_end", "Collect.on_train_batch_end", "Guard.on_train_end"),
    ]
    places = [words.index(word) for word in order]
    assert places == sorted(places)
    said = [line.split() for line in outcome.out.splitlines() if line.startswith("  ")]
    assert len(said) > 20
    assert all(len(words) > 2 for words in said), "every hook says what it does"
