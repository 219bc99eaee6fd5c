"""What the system says of its memory: a machine's, and a control group's."""

from neo_tf.runtime.device.machine import available_memory


def write(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_smallest_of_all_limits_counts_and_pages_of_files_do_not(tmp_path):
    write(tmp_path, {"proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n"})
    assert available_memory(tmp_path) == 8000 * 1024
    group = "sys/fs/cgroup/user/job/"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/user/job\n",
            group + "memory.max": "5000000\n",
            group + "memory.current": "4000000\n",
            group + "memory.stat": "anon 1000000\ninactive_file 2500000\nactive_file 500000\nfile 3000000\n",
        },
    )
    assert available_memory(tmp_path) == 4_000_000
    write(tmp_path, {"sys/fs/cgroup/user/memory.max": "3000000", "sys/fs/cgroup/user/memory.current": "1000000"})
    assert available_memory(tmp_path) == 2_000_000
    write(tmp_path, {group + "memory.max": "max\n", "sys/fs/cgroup/user/memory.max": "max"})
    assert available_memory(tmp_path) == 8000 * 1024
    write(tmp_path, {"sys/fs/cgroup/memory.max": "10", "sys/fs/cgroup/memory.current": "20"})
    assert available_memory(tmp_path) == 0


def test_a_system_that_tells_nothing(tmp_path):
    assert available_memory(tmp_path) is None
