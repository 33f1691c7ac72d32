#!/bin/sh
# The first process: it loads what the root disk needs, mounts it and goes on there. Debian's systemd would do by itself
# what stands below the mount of the disk; stage 2 of NixOS takes it to be done.
busybox mount -t devtmpfs none /dev
for module in /modules/*.ko; do busybox insmod "$module"; done
tries=0
until [ -b /dev/vda ] || [ $tries -ge 500 ]; do
  busybox usleep 10000
  tries=$((tries + 1))
done
if ! busybox mount -t ext4 -o noatime /dev/vda /root; then
  echo "test host: the root disk can't be mounted" >/dev/console
  busybox reboot -f
fi
busybox ln -s /proc/self/fd /dev/fd
busybox ln -s /proc/self/fd/0 /dev/stdin
busybox ln -s /proc/self/fd/1 /dev/stdout
busybox ln -s /proc/self/fd/2 /dev/stderr
busybox mount -o move /dev /root/dev
busybox mount -t proc -o nosuid,nodev,noexec proc /root/proc
busybox mount -t sysfs -o nosuid,nodev,noexec sysfs /root/sys
busybox mount -t tmpfs -o nosuid,nodev,strictatime,mode=755 none /root/run
exec busybox switch_root /root /sbin/init
