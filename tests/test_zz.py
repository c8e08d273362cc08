import subprocess, os
def test_leaky(utsuwa):
    subprocess.Popen(["sleep","30"], user=utsuwa.uid, env=utsuwa.environ(), cwd="/").returncode=0
    os.makedirs(utsuwa.root+"/containers/xyz", exist_ok=True)
    subprocess.run(["ip","link","add","zz0","type","bridge"])
    subprocess.run(["mount","-t","tmpfs","none",utsuwa.home+"/"])
    os.mkdir("/sys/fs/cgroup/pids/utsuwa-zz") if utsuwa.name=="root" else None
