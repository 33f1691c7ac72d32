# Makes Debian's tree ($tree) one store path that runs by itself: $out/{bin,lib,libexec,share}, with every program's
# interpreter and library path in the store. Paths that are compiled in as /usr/lib/… stay: see debian.nix.
mkdir -p $out/etc
cp -a $tree/usr/{bin,lib,libexec,share} $out/
chmod -R u+w $out
for program in $tree/usr/sbin/*; do
  [ -e "$out/bin/${program##*/}" ] || cp -a "$program" $out/bin/
done
ln -s bin $out/sbin
rm -rf $out/share/{doc,man,locale,info,bug,lintian,zsh,fish} $out/share/perl/*/unicore/lib
rm -rf $out/lib/{python*,debug,modules} $out/lib/systemd/boot
# Which files are a package's.
mkdir -p $out/share/dpkg
cp $tree/var/lib/dpkg/info/*.list $out/share/dpkg/
cp -a $tree/etc/{pam.d,dbus-1,login.defs} $out/etc/
chmod -R u+w $out

libraries=$out/lib/x86_64-linux-gnu
linker=$libraries/ld-linux-x86-64.so.2
[ -e $linker ]

# Absolute links lead into this path, through /etc/alternatives where need be.
find $out -type l | while read -r link; do
  target=$(readlink "$link")
  while [ "${target#/etc/alternatives/}" != "$target" ]; do
    target=$(readlink "$tree$target") || break
  done
  case $target in
    /usr/*) target=${target#/usr} ;;
    /bin/* | /sbin/* | /lib/* | /lib64/*) ;;
    *) continue ;;
  esac
  ln -sfn "$out${target/#\/sbin\//\/bin\/}" "$link"
done

# An RPATH and not a RUNPATH: it holds for what is loaded later as well (NSS, PAM, plug-ins).
patch_elf() {
  local old interpreter
  old=$(patchelf --print-rpath "$1" 2>/dev/null || true)
  interpreter=$(patchelf --print-interpreter "$1" 2>/dev/null || true)
  local path=$libraries${old:+:${old//\/usr\/lib/$out\/lib}}
  if [ -n "$interpreter" ]; then
    patchelf --set-interpreter $linker --force-rpath --set-rpath "$path" "$1"
  elif [ -n "$old" ]; then
    patchelf --force-rpath --set-rpath "$path" "$1"
  fi
}

scripts=()
while IFS= read -r -d '' file; do
  # Bash reads them itself: there are thousands, and each process costs more than the look.
  magic=
  LC_ALL=C IFS= read -r -d '' -n 4 magic <"$file" || true
  case $magic in
    $'\x7fELF')
      case $file in
        */ld-linux*) ;;
        *) patch_elf "$file" ;;
      esac
      ;;
    '#!'*) scripts+=("$file") ;;
  esac
done < <(find $out/{bin,lib,libexec} -type f \( -perm /111 -o -name '*.so*' \) -print0)
sed -i -E "1s,^#! ?/usr/bin/env ,#!$out/bin/,; 1s,^#! ?/(usr/)?s?bin/,#!$out/bin/," "${scripts[@]}"

# Perl looks for its modules at Debian's places.
version=$(ls $libraries/perl | grep -xE '[0-9]+\.[0-9]+' | head -1)
mv $out/bin/perl $out/bin/.perl-real
modules=$out/share/perl5:$libraries/perl5/$version:$libraries/perl-base:$libraries/perl/$version:$out/share/perl/$version
cat >$out/bin/perl <<END
#!$out/bin/bash
export PERL5LIB=\${PERL5LIB:+\$PERL5LIB:}$modules
exec $out/bin/.perl-real "\$@"
END
chmod +x $out/bin/perl

$out/bin/perl -e 'use File::Slurp; use JSON; use Net::DBus; use Config::IniFiles; print "perl $]\n"'
$out/bin/bash --version | head -1
$out/lib/systemd/systemd --version | head -1
$out/bin/nix --version
