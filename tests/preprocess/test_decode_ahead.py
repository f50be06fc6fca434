"""Studies decoded in a process of its own."""

from dicom_files import plan_one, write_series

from preprocess.decode_ahead import _Worker


def test_a_study_whose_process_died_is_tried_again_and_nothing_starts_after_the_end(tmp_path):
    plan, _ = plan_one(write_series(tmp_path / "in"))
    worker = _Worker()
    worker._started().kill()
    study, _ = worker.decode(plan)
    assert study is not None and study.read(0, 1).shape == (1, plan.rows, plan.columns)
    worker.close()
    study, (finding,) = worker.decode(plan)
    assert study is None and worker._process is None
    assert finding.reason == "worker_died" and finding.message.endswith("(by SIGKILL)")
