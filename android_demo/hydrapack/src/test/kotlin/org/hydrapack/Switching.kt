package org.hydrapack

import java.io.File

/** Updates a folder of packages forth and back until it is killed; for PackagesTest. */
fun main(arguments: Array<String>) {
    val (folder, fixtures) = arguments.map(::File)
    val packages = Packages(folder)
    val first = File(fixtures, "package/manifest.json").readText()
    println("begun")
    while (true) {
        val isFirst = File(packages.current, "manifest.json").readText() == first
        packages.update(File(fixtures, if (isFirst) "up.patch" else "down.patch"))
        packages.activate(packages.previous)
        packages.activate(File(fixtures, "next"))
    }
}
