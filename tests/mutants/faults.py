"""Faults in how a run meets trouble from outside: full disks, links, secrets, hangs."""

from tests.mutants.mutant import Mutant

FAULT_MUTANTS = (
    Mutant(
        "a run goes on without its watchdog",
        'watchdog failed\\n{traceback.format_exc()}")\n                os._exit(FAILED)',
        'watchdog failed\\n{traceback.format_exc()}")',
        ("tests/unit/runtime/test_watchdog.py::test_a_run_ends_with_its_watchdog",),
    ),
    Mutant(
        "a password in a URL passes the checks",
        "            if USER_IN_URL.search(text):",
        "            if False:",
        ("tests/unit/checks/test_secrets.py",),
    ),
    Mutant(
        "a draft is written through a link",
        "    draft.unlink(missing_ok=True)\n    try:",
        "    try:",
        ("tests/unit/test_links.py::test_a_temporary_file_is_not_written_through_a_link",),
    ),
    Mutant(
        "a checkpoint goes into a folder that took the run directory's place",
        "    run.lock.check_is_there()\n",
        "",
        (
            "tests/unit/test_resume.py::"
            "test_a_folder_that_took_the_run_directorys_place_gets_no_checkpoint",
        ),
    ),
    Mutant(
        "an error that was raised while the disk's was handled counts as the disk's",
        "waiting += [each.__cause__, ",
        "waiting += [each.__cause__, each.__context__, ",
        ("tests/unit/test_storage.py::test_nothing_else_is_a_failure_of_the_disk",),
    ),
)
