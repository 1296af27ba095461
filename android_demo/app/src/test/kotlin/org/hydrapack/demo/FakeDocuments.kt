package org.hydrapack.demo

import android.content.ContentProvider
import android.content.ContentValues
import android.database.Cursor
import android.database.MatrixCursor
import android.net.Uri
import android.os.ParcelFileDescriptor
import android.provider.DocumentsContract
import java.io.File

/** A folder of this machine as the phone's file picker gives it: ids are paths. */
class FakeDocuments : ContentProvider() {
    override fun onCreate() = true

    override fun query(
        uri: Uri,
        projection: Array<String>?,
        selection: String?,
        arguments: Array<String>?,
        order: String?,
    ): Cursor {
        val cursor = MatrixCursor(projection)
        for (file in File(DocumentsContract.getDocumentId(uri)).listFiles().orEmpty()) {
            val type = if (file.isDirectory) DocumentsContract.Document.MIME_TYPE_DIR else "x/y"
            cursor.addRow(arrayOf<Any?>(file.path, file.name, type, file.length()))
        }
        return cursor
    }

    override fun openFile(uri: Uri, mode: String): ParcelFileDescriptor = ParcelFileDescriptor.open(
        File(DocumentsContract.getDocumentId(uri)), ParcelFileDescriptor.MODE_READ_ONLY,
    )

    override fun getType(uri: Uri): String? = null

    override fun insert(uri: Uri, values: ContentValues?): Uri? = null

    override fun delete(uri: Uri, selection: String?, arguments: Array<String>?) = 0

    override fun update(
        uri: Uri,
        values: ContentValues?,
        selection: String?,
        arguments: Array<String>?,
    ) = 0
}
