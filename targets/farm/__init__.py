"""The device farm: many models measured on many phones and boards, each reached over adb or ssh."""
